def run(i): print(i)
