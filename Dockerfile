# 3.11 is the version that the tests run on. docs/deploying.md says where digests come from.
FROM python:3.11.16-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7 AS build
ENV UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/postage UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir --disable-pip-version-check 'uv>=0.13.6,<0.14'
WORKDIR /source
# The locked packages come first, so this layer is rebuilt only when the lock changes.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project
COPY worker worker
COPY tasks tasks
COPY models models
RUN uv sync --frozen --no-dev --no-editable

FROM python:3.11.16-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin postage \
    && install -d -o postage -g postage -m 0700 /var/lib/postage
COPY --from=build /opt/postage /opt/postage
ENV PATH=/opt/postage/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 POSTAGE_VAR=/var/lib/postage
USER postage
# Not a folder with sources: nothing in the working directory may be imported instead of the installed packages.
WORKDIR /var/lib/postage
ENTRYPOINT ["postage"]
