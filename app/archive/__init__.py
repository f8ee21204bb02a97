"""The event log's archive: Parquet files under numbered manifests, and what is made from them. The only package with pyarrow."""
