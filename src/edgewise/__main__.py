"""`python -m edgewise`: the command line, also where no script of that name is on the path."""

from edgewise.cli import main

if __name__ == "__main__":  # not in the processes that train, which import this file
    main()
