from rayswift.cli import command

command()
