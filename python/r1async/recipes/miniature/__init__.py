"""DeepSeek-R1's recipe in miniature: a world small enough to be learned on a laptop, made of chain-mod."""
