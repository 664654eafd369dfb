"""The paper's count of wins in small: seven settings by six scores, on archives of npm and Debian; the protocol is README.md."""
