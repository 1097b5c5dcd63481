"""Benchmarks: each is registered once, with its peers; running, checking and plotting are generic."""
