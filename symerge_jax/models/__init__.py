"""Networks: architecture, heads and tokenizers, all behind `apply(params, inputs)`."""
