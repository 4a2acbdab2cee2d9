"""Deployments as plain directories."""
