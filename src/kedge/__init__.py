"""Serverless Python without a cloud."""
