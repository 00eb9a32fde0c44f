"""A finished run at work: files, streams, HTTP, clusters, plain weights."""
