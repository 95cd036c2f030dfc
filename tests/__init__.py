"""Tests of emo-export."""
