"""The command of `benchmarks.speed.gpu`."""

from benchmarks.speed.gpu import main

if __name__ == "__main__":
    main()
