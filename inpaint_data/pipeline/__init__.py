"""The way of a sample, stage by stage, for any `wds.DataPipeline`."""
