"""Speaking to HTCondor: its bindings in a helper process, its command-line tools, its ClassAd language."""
