"""Many variants of one checkpoint (domain, experts kept, method, target) on a Dask cluster."""
