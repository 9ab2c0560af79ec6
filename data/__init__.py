"""Sources, tokenizer, order and loader: any rank of any site computes its own samples."""
