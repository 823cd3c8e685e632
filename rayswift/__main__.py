from rayswift.cli import main

main()
