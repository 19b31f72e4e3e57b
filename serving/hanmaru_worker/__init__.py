"""The worker: a supervisor beside one engine, and the plugin that teaches SGLang this model."""
