"""Builds the container images of the project: what is in them, the build's folder, buildah or docker, kept archives."""
