"""The foundations of the package: records, errors, seeds, digests, paths, schemas, progress, threads."""
