from pal.cli import run

if __name__ == "__main__":  # a process that a sweep starts imports this too
    run()
