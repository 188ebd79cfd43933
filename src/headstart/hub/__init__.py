"""Models on the Hugging Face Hub: resolving names to files, downloading, uploading."""
