"""The command of `benchmarks.kernels.launches`."""

from benchmarks.kernels.launches import main

if __name__ == "__main__":
    main()
