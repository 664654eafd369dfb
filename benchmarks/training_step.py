"""The command of `benchmarks.speed.training_step`."""

from benchmarks.speed.training_step import main

if __name__ == "__main__":
    main()
