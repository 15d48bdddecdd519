"""`python -m edgewise`: the command line, also where no script of that name is on the path."""

if __name__ == "__main__":  # not in the processes that train, which run this file as well
    from edgewise.cli import main

    main()
