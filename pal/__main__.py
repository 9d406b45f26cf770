from pal.cli import main

main()
