"""Images and captions: data sets, manifests, the batch plan, the input pipeline, caches."""
