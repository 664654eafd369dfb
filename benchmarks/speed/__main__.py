"""The command of `benchmarks.speed.cpu`."""

from benchmarks.speed.cpu import main

if __name__ == "__main__":
    main()
