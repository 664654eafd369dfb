"""The command of `benchmarks.roofline.floors`."""

from benchmarks.roofline.floors import main

if __name__ == "__main__":
    main()
