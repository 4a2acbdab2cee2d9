"""The running host: what it is, where its parts are, how it is told to reboot."""
