"""MiniGPT: small GPTs, their data, their counts and their training loop."""
