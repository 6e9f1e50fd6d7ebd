/* A load client for HTTPS through a CONNECT proxy, or direct: one thread, epoll, OpenSSL.
 *
 * It verifies chain and host name of every new session, checks every status line, the framing of every body and
 * (-W) a text in the head, takes one latency per request, and prints one JSON object. Modes:
 *   keep  -c connections that are kept, requests back to back for -t seconds or -n requests
 *   new   every request over a connection of its own: TCP, CONNECT, full handshake, request, close
 *   idle  open -c connections with one request each, print READY, wait for the end of stdin or -t seconds
 *   down  one connection, -n requests one after the other, bytes are counted
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char *host = "bench.test", *path = "/json", *cafile, *proxyauth, *want, *extra = "";
static int port = 18443, pport = 0, conc = 1, resume = 0;
static long nreq = 0;
static double secs = 5, warm = 0.5;
static char mode = 'k';
static SSL_CTX *ctx;
static SSL_SESSION *sess;
static int ep;
enum {
    CONNECTING,
    PROXY_W,
    PROXY_R,
    HANDSHAKE,
    SEND,
    HEAD,
    BODY,
    CHUNK_SZ,
    CHUNK_DATA,
    CHUNK_CRLF,
    TRAILER,
    DONE,
    UNTILEOF
};
typedef struct {
    int fd, st;
    SSL *ssl;
    char in[65536];
    int inlen;
    char out[4096];
    int outlen, outpos;
    long long t0, tconn;
    long long left;
    long long got;
    int close_after;
    int idle;
} C;
static unsigned *lat;
static long nlat, caplat;
static long errors, conns, bytes, resumed;
static long long tstart, tend, tmeas;
static int stopping;
static char errmsg[256];
static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static char connreq[2048], *req;
static int connreqlen, reqlen;
static long blen = 0;
static void seterr(const char *s) {
    errors++;
    if (!errmsg[0]) { snprintf(errmsg, sizeof errmsg, "%s", s); }
}
static void arm(C *c, int ev, int op) {
    struct epoll_event e = {.events = ev, .data.ptr = c};
    epoll_ctl(ep, op, c->fd, &e);
}
static int newsess_cb(SSL *s, SSL_SESSION *n) {
    (void)s;
    if (!resume) return 0;
    if (sess) SSL_SESSION_free(sess);
    sess = n;
    return 1;
}
static void start(C *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (mode == 'n') {
        struct linger l = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    }
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(pport ? pport : port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->st = CONNECTING;
    c->inlen = 0;
    c->ssl = NULL;
    c->t0 = c->tconn = now();
    conns++;
    if (connect(c->fd, (void *)&a, sizeof a) < 0 && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
    arm(c, EPOLLOUT, EPOLL_CTL_ADD);
}
static void kill_c(C *c) {
    if (c->ssl) {
        if (mode == 'n') SSL_shutdown(c->ssl);
        SSL_free(c->ssl);
    }
    close(c->fd);
    c->ssl = NULL;
    c->fd = -1;
}
static void begin_tls(C *c) {
    c->ssl = SSL_new(ctx);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_tlsext_host_name(c->ssl, host);
    SSL_set1_host(c->ssl, host);
    SSL_set_connect_state(c->ssl);
    if (resume && sess) SSL_set_session(c->ssl, sess);
    c->st = HANDSHAKE;
}
static int active;
static void restart(C *c) {
    kill_c(c);
    if (stopping) {
        active--;
        c->st = DONE;
    } else start(c);
}
static void fin(C *c) { /* one response complete */
    long long t = now();
    if (c->t0 >= tmeas) {
        if (nlat == caplat) {
            caplat = caplat ? caplat * 2 : 65536;
            lat = realloc(lat, caplat * sizeof *lat);
        }
        long long d = t - c->t0;
        lat[nlat++] = d > 4000000000LL ? 4000000000U : (unsigned)d;
    }
    tend = t;
    if (mode == 'i') {
        c->idle = 1;
        c->st = DONE;
        return;
    }
    if ((nreq && nlat >= nreq) || (!nreq && t - tstart > (long long)(secs * 1e9))) stopping = 1;
    if (mode == 'n') {
        restart(c);
        return;
    }
    if (c->close_after) {
        if (mode == 'k') seterr("server closed keep-alive");
        restart(c);
        return;
    }
    if (stopping) {
        kill_c(c);
        active--;
        c->st = DONE;
        return;
    }
    c->st = SEND;
    c->outpos = 0;
    c->t0 = t;
}
static int sslerr(C *c, int r) {
    int e = SSL_get_error(c->ssl, r);
    if (e == SSL_ERROR_WANT_READ) {
        arm(c, EPOLLIN, EPOLL_CTL_MOD);
        return 0;
    }
    if (e == SSL_ERROR_WANT_WRITE) {
        arm(c, EPOLLOUT, EPOLL_CTL_MOD);
        return 0;
    }
    return -1;
}
static void fail(C *c, const char *m) {
    char b[200];
    unsigned long e = ERR_get_error();
    snprintf(b, sizeof b, "%s st=%d %s", m, c->st, e ? ERR_error_string(e, NULL) : "");
    seterr(b);
    ERR_clear_error();
    if (errors > 1000) {
        fprintf(stderr, "too many errors: %s\n", errmsg);
        exit(3);
    }
    restart(c);
}
static void pump(C *c) {
    char *p;
    int r;
    for (;;) switch (c->st) {
        case CONNECTING: {
            int e = 0;
            socklen_t l = sizeof e;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &l);
            if (e) {
                fail(c, strerror(e));
                return;
            }
            if (pport) {
                c->st = PROXY_W;
            } else {
                begin_tls(c);
            }
            break;
        }
        case PROXY_W:
            r = write(c->fd, connreq, connreqlen);
            if (r != connreqlen) {
                fail(c, "short CONNECT write");
                return;
            }
            c->st = PROXY_R;
            arm(c, EPOLLIN, EPOLL_CTL_MOD);
            return;
        case PROXY_R:
            r = read(c->fd, c->in + c->inlen,
                     1 + 0); /* byte-wise would be slow; heads are short: read with peek */
            if (r <= 0) {
                if (r < 0 && errno == EAGAIN) {
                    arm(c, EPOLLIN, EPOLL_CTL_MOD);
                    return;
                }
                fail(c, "proxy closed");
                return;
            }
            c->inlen += r;
            {
                char tmp[4096];
                int k = recv(c->fd, tmp, sizeof tmp, MSG_PEEK);
                if (k > 0) { /* take only up to end of head */
                    int take = k;
                    memcpy(c->in + c->inlen, tmp, k);
                    c->in[c->inlen + k] = 0;
                    char *q = memmem(c->in, c->inlen + k, "\r\n\r\n", 4);
                    if (q) {
                        int endp = q + 4 - c->in;
                        take = endp - c->inlen;
                    }
                    if (take > 0) {
                        r = read(c->fd, tmp, take);
                        c->inlen += r;
                    }
                }
            }
            c->in[c->inlen] = 0;
            if (memmem(c->in, c->inlen, "\r\n\r\n", 4)) {
                if (strncmp(c->in, "HTTP/1.", 7) || strncmp(c->in + 9, "200", 3)) {
                    char b[100];
                    snprintf(b, 60, "CONNECT refused: %.40s", c->in);
                    fail(c, b);
                    return;
                }
                c->inlen = 0;
                begin_tls(c);
                break;
            }
            if (c->inlen > 4000) {
                fail(c, "CONNECT head too long");
                return;
            }
            break;
        case HANDSHAKE:
            r = SSL_do_handshake(c->ssl);
            if (r != 1) {
                if (sslerr(c, r) < 0) fail(c, "handshake");
                return;
            }
            if (SSL_session_reused(c->ssl)) resumed++;
            if (mode != 'n') c->t0 = now();
            c->st = SEND;
            c->outpos = 0;
            break;
        case SEND:
            r = SSL_write(c->ssl, req + c->outpos, reqlen - c->outpos);
            if (r <= 0) {
                if (sslerr(c, r) < 0) fail(c, "write");
                return;
            }
            c->outpos += r;
            if (c->outpos < reqlen) break;
            c->st = HEAD;
            c->inlen = 0;
            c->got = 0;
            arm(c, EPOLLIN, EPOLL_CTL_MOD);
            return;
        case HEAD:
        case BODY:
        case CHUNK_SZ:
        case CHUNK_DATA:
        case CHUNK_CRLF:
        case TRAILER:
        case UNTILEOF:
            r = SSL_read(c->ssl, c->in + c->inlen, sizeof c->in - 1 - c->inlen);
            if (r <= 0) {
                int e = SSL_get_error(c->ssl, r);
                if (e == SSL_ERROR_WANT_READ) { return; }
                if (e == SSL_ERROR_WANT_WRITE) {
                    arm(c, EPOLLOUT, EPOLL_CTL_MOD);
                    return;
                }
                if (c->st == UNTILEOF) {
                    c->close_after = 1;
                    fin(c);
                    if (c->st == DONE || c->st == CONNECTING) return;
                    break;
                }
                fail(c, "read/eof");
                return;
            }
            c->inlen += r;
            c->in[c->inlen] = 0;
            bytes += r;
            if (c->st == HEAD) {
                p = memmem(c->in, c->inlen, "\r\n\r\n", 4);
                if (!p) {
                    if (c->inlen > 60000) {
                        fail(c, "head too long");
                        return;
                    }
                    break;
                }
                *p = 0;
                if (strncmp(c->in + 9, "200", 3)) {
                    char b[80];
                    snprintf(b, 60, "status %.30s", c->in);
                    fail(c, b);
                    return;
                }
                if (want && !strcasestr(c->in, want)) {
                    fail(c, "wanted header missing");
                    return;
                }
                char *h;
                c->close_after = strcasestr(c->in, "\r\nconnection: close") != NULL;
                c->left = -1;
                if ((h = strcasestr(c->in, "\r\ncontent-length:"))) {
                    c->left = atoll(h + 17);
                    c->st = BODY;
                } else if (strcasestr(c->in, "\r\ntransfer-encoding: chunked")) {
                    c->st = CHUNK_SZ;
                } else c->st = UNTILEOF;
                int hl = p + 4 - c->in;
                memmove(c->in, c->in + hl, c->inlen - hl);
                c->inlen -= hl;
            }
            for (int again = 1; again;) {
                again = 0;
                if (c->st == BODY) {
                    c->left -= c->inlen;
                    c->got += c->inlen;
                    c->inlen = 0;
                    if (c->left < 0) {
                        fail(c, "extra body");
                        return;
                    }
                    if (c->left == 0) goto complete;
                } else if (c->st == UNTILEOF) {
                    c->got += c->inlen;
                    c->inlen = 0;
                } else if (c->st == CHUNK_SZ) {
                    char *q = memmem(c->in, c->inlen, "\r\n", 2);
                    if (q) {
                        c->left = strtoll(c->in, NULL, 16);
                        int k = q + 2 - c->in;
                        memmove(c->in, c->in + k, c->inlen - k);
                        c->inlen -= k;
                        c->st = c->left ? CHUNK_DATA : TRAILER;
                        again = 1;
                    }
                } else if (c->st == CHUNK_DATA) {
                    int k = c->inlen < c->left ? c->inlen : (int)c->left;
                    c->left -= k;
                    c->got += k;
                    memmove(c->in, c->in + k, c->inlen - k);
                    c->inlen -= k;
                    if (!c->left) {
                        c->st = CHUNK_CRLF;
                        again = 1;
                    }
                } else if (c->st == CHUNK_CRLF) {
                    if (c->inlen >= 2) {
                        memmove(c->in, c->in + 2, c->inlen - 2);
                        c->inlen -= 2;
                        c->st = CHUNK_SZ;
                        again = 1;
                    }
                } else if (c->st == TRAILER) {
                    if (c->inlen >= 2) {
                        c->inlen = 0;
                        goto complete;
                    }
                }
            }
            break;
        complete:
            fin(c);
            if (c->st != SEND) return;
            break;
        case DONE: return;
        }
}
static int cmp(const void *a, const void *b) {
    unsigned x = *(unsigned *)a, y = *(unsigned *)b;
    return x < y ? -1 : x > y;
}
int main(int argc, char **argv) {
    int o;
    while ((o = getopt(argc, argv, "m:h:p:P:a:c:n:t:w:f:C:u:W:rH:b:")) != -1) switch (o) {
        case 'm': mode = optarg[0]; break;
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'P': pport = atoi(optarg); break;
        case 'a': proxyauth = optarg; break;
        case 'c': conc = atoi(optarg); break;
        case 'n': nreq = atol(optarg); break;
        case 't': secs = atof(optarg); break;
        case 'w': warm = atof(optarg); break;
        case 'C': cafile = optarg; break;
        case 'u': path = optarg; break;
        case 'W': want = optarg; break;
        case 'r': resume = 1; break;
        case 'H': extra = optarg; break;
        case 'b': blen = atol(optarg); break;
        default:
            fprintf(stderr, "usage: client -m keep|new|idle|down [-h host] [-p port] [-P "
                            "proxyport] [-a user:pass base64] [-C ca.pem] [-c conc] [-t secs] [-n "
                            "reqs] [-w warmup s] [-u path] [-W wanted-header-text] [-r (resume)] "
                            "[-H 'X: y\\r\\n'] [-b POST-body-bytes]\n");
            return 2;
        }
    ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    if (cafile && !SSL_CTX_load_verify_locations(ctx, cafile, NULL)) {
        fprintf(stderr, "bad CA\n");
        return 2;
    }
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_AUTO_RETRY | SSL_MODE_RELEASE_BUFFERS);
    static const unsigned char alpn[] = "\x08http/1.1";
    SSL_CTX_set_alpn_protos(ctx, alpn, 9);
    if (resume) {
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(ctx, newsess_cb);
    }
    const char *ch = getenv("CONNECT_HOST") ? getenv("CONNECT_HOST") : host;
    connreqlen =
        snprintf(connreq, sizeof connreq, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n%s%s%s\r\n", ch,
                 port, ch, port, proxyauth ? "Proxy-Authorization: Basic " : "",
                 proxyauth ? proxyauth : "", proxyauth ? "\r\n" : "");
    req = malloc(4096 + blen);
    char bl[96] = "";
    if (blen)
        snprintf(bl, sizeof bl, "Content-Type: application/json\r\nContent-Length: %ld\r\n", blen);
    reqlen = snprintf(req, 4096,
                      "%s %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: mitmload/1\r\nAccept: "
                      "application/json\r\nAuthorization: Bearer placeholder-token\r\n%s%s\r\n",
                      blen ? "POST" : "GET", path, host, port, bl, extra);
    if (blen) {
        memset(req + reqlen, 'x', blen);
        reqlen += blen;
    }
    ep = epoll_create1(0);
    C *cs = calloc(conc, sizeof *cs);
    tstart = now();
    tmeas = tstart + (long long)(warm * 1e9);
    secs += warm;
    active = conc;
    struct rusage ru0, ru1;
    getrusage(RUSAGE_SELF, &ru0);
    if (mode == 'i') {
        tmeas = tstart;
        for (int i = 0; i < conc; i++) {
            start(&cs[i]);
            long long lim = now() + 20000000000LL;
            while (cs[i].st != DONE && now() < lim) {
                struct epoll_event e[16];
                int k = epoll_wait(ep, e, 16, 1000);
                for (int j = 0; j < k; j++) {
                    C *c = e[j].data.ptr;
                    if (c->st == DONE) {
                        if (!c->idle) continue;
                        char b[64];
                        if (c->ssl && SSL_read(c->ssl, b, 64) == 0) seterr("idle closed");
                        arm(c, 0, EPOLL_CTL_MOD);
                        continue;
                    }
                    pump(c);
                }
            }
            if (errors > 5) {
                fprintf(stderr, "%s\n", errmsg);
                return 3;
            }
        }
        printf("READY %d errors=%ld %s\n", conc, errors, errmsg);
        fflush(stdout);
        char b[8];
        fd_set fs;
        FD_ZERO(&fs);
        FD_SET(0, &fs);
        struct timeval tv = {(int)secs, 0};
        select(1, &fs, 0, 0, &tv);
        (void)b;
        return 0;
    }
    for (int i = 0; i < conc; i++) start(&cs[i]);
    struct epoll_event ev[256];
    long long hard = tstart + (long long)((secs + 30) * 1e9);
    if (nreq) hard = tstart + 600000000000LL;
    while (active > 0) {
        int k = epoll_wait(ep, ev, 256, 1000);
        for (int i = 0; i < k; i++) pump(ev[i].data.ptr);
        long long t = now();
        if (t > hard) {
            seterr("hard timeout");
            break;
        }
        if (!nreq && t - tstart > (long long)(secs * 1e9)) {
            stopping = 1;
            if (k == 0) break;
        }
    }
    getrusage(RUSAGE_SELF, &ru1);
    double el = (tend - tmeas) / 1e9;
    qsort(lat, nlat, sizeof *lat, cmp);
#define Q(q) (nlat ? lat[(long)((nlat - 1) * (q))] / 1000.0 : 0)
    double cpu = ru1.ru_utime.tv_sec - ru0.ru_utime.tv_sec + ru1.ru_stime.tv_sec -
                 ru0.ru_stime.tv_sec +
                 (ru1.ru_utime.tv_usec - ru0.ru_utime.tv_usec + ru1.ru_stime.tv_usec -
                  ru0.ru_stime.tv_usec) /
                     1e6;
    double mean = 0;
    for (long i = 0; i < nlat; i++) mean += lat[i];
    if (nlat) mean /= nlat * 1000.0;
    printf("{\"requests\":%ld,\"seconds\":%.3f,\"rps\":%.1f,\"mean_us\":%.1f,\"p50_us\":%.1f,\"p90_"
           "us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,\"bytes\":%ld,\"conns\":%ld,\"resumed\":%ld,"
           "\"errors\":%ld,\"client_cpu_s\":%.3f,\"err\":\"%s\"}\n",
           nlat, el, nlat / el, mean, Q(.5), Q(.9), Q(.99), Q(1), bytes, conns, resumed, errors,
           cpu, errmsg);
    return 0;
}
