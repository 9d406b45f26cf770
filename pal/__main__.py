from pal.cli import main

if __name__ == "__main__":  # a process that a sweep starts imports this too
    main()
