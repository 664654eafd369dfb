"""The command of `benchmarks.roofline.scaling`."""

from benchmarks.roofline.scaling.__main__ import main

if __name__ == "__main__":
    main()
