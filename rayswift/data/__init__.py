"""rows -> canonical rows -> token ids + loss mask -> packed rows -> batches."""
