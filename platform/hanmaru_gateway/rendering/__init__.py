"""From messages to token ids, with the tokenizer and chat template that the worker published."""
