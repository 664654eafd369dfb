"""The command of `benchmarks.roofline.scaling.measured`."""

from benchmarks.roofline.scaling.measured import main

if __name__ == "__main__":
    main()
