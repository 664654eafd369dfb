"""The command of `benchmarks.speed.memory`."""

from benchmarks.speed.memory import main

if __name__ == "__main__":
    main()
