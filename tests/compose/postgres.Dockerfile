# For a Postgres image whose pg_dump is older than its server: adds the tools of the server's major version.
FROM postgres:16
USER root
RUN python3 -m venv /tools && /tools/bin/pip install --no-cache-dir --no-deps pgserver==0.1.4
ENV TOOLS=/tools/lib/python3.11/site-packages/pgserver/pginstall
RUN for tool in pg_dump pg_restore psql; do ln -sf "$TOOLS/bin/$tool" "/usr/local/bin/$tool"; done && pg_dump --version
