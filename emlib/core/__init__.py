"""What everything else stands on: records, errors, seeds, digests, paths, schemas, progress, threads."""
