"""`python -m worker` is the same as `coatstream`."""

from worker.cli import main

if __name__ == "__main__":
    main()
