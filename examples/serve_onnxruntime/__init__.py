"""A small HTTP service around a compiled model; copy this folder and make it yours."""
