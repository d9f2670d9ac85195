"""Completions into data: asked, filtered, rewritten, labelled, selected."""
