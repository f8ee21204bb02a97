"""From a trained net to a bundle: graphs, golden vectors, verification, and the folder itself."""
