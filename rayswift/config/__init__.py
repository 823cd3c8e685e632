"""argv + YAML -> one resolved, frozen config. Imports neither torch nor ray."""
