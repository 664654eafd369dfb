"""The command of `benchmarks.speed.predictions`."""

from benchmarks.speed.predictions import main

if __name__ == "__main__":
    main()
