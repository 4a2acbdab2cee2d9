"""The composefs storage backend: repository, images, deployments."""
