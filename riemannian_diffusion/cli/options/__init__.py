"""The options of each command. Importing them does not import PyTorch."""
