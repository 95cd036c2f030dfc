"""Places where an exported model is judged: emulated, over ssh, over adb."""
