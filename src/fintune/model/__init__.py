"""Models, their tokenizers and prompts, and how attention sees rows that share a beginning."""
