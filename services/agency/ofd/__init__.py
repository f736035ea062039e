"""Fund files in the layout of JR/T 0017: layouts, reader, writer, index, and what their records mean here. Pure.

Nothing here opens a file but :func:`services.agency.ofd.reader.read_path`. See ``docs/fund-files.md``.
"""
