"""The GPT of the article, the layers that it is made of, and what they cost."""
