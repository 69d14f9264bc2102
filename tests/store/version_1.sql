-- A store of schema 1, dumped. test_store_schema.py says what it holds.
PRAGMA application_id = 1634167857;
BEGIN TRANSACTION;
CREATE TABLE blob(seq INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
INSERT INTO "blob" VALUES(1,X'78540C0CA4DA0A7B78DE60D2F0F701F75182CB42CDF043D6D192321F8C765DC9',CAST('{"long":"' || replace(hex(zeroblob(33000)), '00', 'yy') || '"}' AS BLOB));
INSERT INTO "blob" VALUES(2,X'BEEE25D3838BC5B8C06E71FD74C6F3C81E2240BFDB399D5089722B0AA6983C4D',X'616E206F6C6420626C6F62');
CREATE TABLE effect(
  seq INTEGER PRIMARY KEY, episode INTEGER NOT NULL, branch TEXT NOT NULL, attempt INTEGER NOT NULL, position INTEGER NOT NULL,
  kind TEXT NOT NULL, name TEXT NOT NULL, request BLOB NOT NULL, note TEXT NOT NULL, issued INTEGER NOT NULL,
  completed INTEGER NOT NULL, at REAL, status TEXT NOT NULL, value, more TEXT, turn, tokens BLOB);
INSERT INTO "effect" VALUES(1,1,'main',0,0,'model','draw',X'00000000000000000000000000000000','a draw',0,1,0.0,'ok',NULL,'{"costs":{"usd":0.5}}','{"f":1,"i":0,"n":[2,2,3,2],"v":2,"s":11,"t":[0.0,0.0],"x":"hello","g":["user",0,2],"cols":[["entropy","entropy","sampled","<f4",[3]]]}',X'01000200050006000700000080BF000080BF000080BF000000000000803F00000040');
INSERT INTO "effect" VALUES(2,1,'main',0,1,'model','draw',X'01000000000000000000000000000000','a draw',2,3,0.25,'ok',NULL,NULL,'{"f":1,"i":1,"n":[2,2,2,3],"v":2,"s":11,"t":[0.0,0.0],"x":"hello","p":["main:0",5],"q":1}',X'01000200701101010000000080BF000080BF');
INSERT INTO "effect" VALUES(3,1,'main',0,2,'effect','draw',X'02000000000000000000000000000000','a draw',4,-1,0.5,'intent','{"page":[1,"Ω",null]}',NULL,NULL,NULL);
CREATE TABLE episode(
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, group_id TEXT NOT NULL, member INTEGER NOT NULL, wanted INTEGER NOT NULL,
  split TEXT NOT NULL, step INTEGER NOT NULL, fork_of TEXT, fork_cut INTEGER NOT NULL, created REAL, head TEXT NOT NULL, task);
INSERT INTO "episode" VALUES(1,'old-1','g1',0,2,'train',3,NULL,0,1.5,'{"seed":7,"workflow":"abababababababababababababababab","forced":{"main:1":[4,5]},"source":"teacher"}','{"q":"why?"}');
INSERT INTO "episode" VALUES(2,'old-2','g1',0,2,'eval',0,'old-1',1,1.5,'{"seed":7,"workflow":"abababababababababababababababab","source":"policy"}',X'78540C0CA4DA0A7B78DE60D2F0F701F75182CB42CDF043D6D192321F8C765DC9');
CREATE TABLE lease(episode INTEGER PRIMARY KEY, writer TEXT NOT NULL);
CREATE TABLE meta(key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('schema',1);
CREATE TABLE reward(
  seq INTEGER PRIMARY KEY, episode INTEGER NOT NULL, at REAL, name TEXT NOT NULL, value REAL, turn TEXT, agent TEXT);
INSERT INTO "reward" VALUES(1,1,1.79541577524881792071e+09,'merged',1.0,NULL,NULL);
CREATE TABLE shared(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL);
INSERT INTO "shared" VALUES(1,'frame','["solver","solver","","","before_mask","act",[1.0,0,1.0,256,[2],[]]]');
INSERT INTO "shared" VALUES(2,'version','["run","solver",3,"d1"]');
CREATE TABLE step(
  seq INTEGER PRIMARY KEY, policy TEXT NOT NULL, step INTEGER NOT NULL, digest BLOB NOT NULL, version TEXT NOT NULL,
  stats TEXT NOT NULL, state, UNIQUE(policy, step));
INSERT INTO "step" VALUES(1,'solver',3,X'C191DB4788F5D37C2B8BE9668D9E1EC12AD39D8147C0998E182E53035F0AE29F','["run","solver",2,"d0"]','{}',NULL);
CREATE TABLE step_row(
  step INTEGER NOT NULL, n INTEGER NOT NULL, episode TEXT NOT NULL, leaf TEXT NOT NULL, turns TEXT NOT NULL,
  advantages BLOB NOT NULL, weight REAL, PRIMARY KEY(step, n));
INSERT INTO "step_row" VALUES(1,0,'old-1','main:1','[["main:0"],[4]]',X'0000803F',1.0);
CREATE TABLE tail(episode INTEGER PRIMARY KEY, status TEXT NOT NULL, seconds REAL, body NOT NULL);
INSERT INTO "tail" VALUES(1,'done',3.0,'{"output":"42","rewards":[["exact",1.0,null,null]],"metrics":{"turns":2.0},"ledger":{"sampled_tokens":0,"lost_tokens":0,"probe_tokens":0,"prompt_tokens":0,"cached_tokens":0,"tool_calls":0,"model_calls":0,"costs":{}},"failure":null,"stops":[]}');
CREATE TABLE writer(
  token TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL, expires REAL NOT NULL);
CREATE INDEX episode_group ON episode(group_id);
CREATE INDEX episode_split ON episode(split, step);
CREATE INDEX episode_step ON episode(step);
CREATE INDEX effect_episode ON effect(episode);
CREATE INDEX tail_status ON tail(status);
CREATE INDEX reward_episode ON reward(episode);
CREATE INDEX lease_writer ON lease(writer);
CREATE TRIGGER episode_no_update BEFORE UPDATE ON episode BEGIN SELECT RAISE(ABORT, 'episode is append-only'); END;
CREATE TRIGGER episode_no_delete BEFORE DELETE ON episode BEGIN SELECT RAISE(ABORT, 'episode is append-only'); END;
CREATE TRIGGER effect_no_update BEFORE UPDATE ON effect BEGIN SELECT RAISE(ABORT, 'effect is append-only'); END;
CREATE TRIGGER effect_no_delete BEFORE DELETE ON effect BEGIN SELECT RAISE(ABORT, 'effect is append-only'); END;
CREATE TRIGGER tail_no_update BEFORE UPDATE ON tail BEGIN SELECT RAISE(ABORT, 'tail is append-only'); END;
CREATE TRIGGER tail_no_delete BEFORE DELETE ON tail BEGIN SELECT RAISE(ABORT, 'tail is append-only'); END;
CREATE TRIGGER reward_no_update BEFORE UPDATE ON reward BEGIN SELECT RAISE(ABORT, 'reward is append-only'); END;
CREATE TRIGGER reward_no_delete BEFORE DELETE ON reward BEGIN SELECT RAISE(ABORT, 'reward is append-only'); END;
CREATE TRIGGER blob_no_update BEFORE UPDATE ON blob BEGIN SELECT RAISE(ABORT, 'blob is append-only'); END;
CREATE TRIGGER blob_no_delete BEFORE DELETE ON blob BEGIN SELECT RAISE(ABORT, 'blob is append-only'); END;
CREATE TRIGGER shared_no_update BEFORE UPDATE ON shared BEGIN SELECT RAISE(ABORT, 'shared is append-only'); END;
CREATE TRIGGER shared_no_delete BEFORE DELETE ON shared BEGIN SELECT RAISE(ABORT, 'shared is append-only'); END;
CREATE TRIGGER step_no_update BEFORE UPDATE ON step BEGIN SELECT RAISE(ABORT, 'step is append-only'); END;
CREATE TRIGGER step_no_delete BEFORE DELETE ON step BEGIN SELECT RAISE(ABORT, 'step is append-only'); END;
CREATE TRIGGER step_row_no_update BEFORE UPDATE ON step_row BEGIN SELECT RAISE(ABORT, 'step_row is append-only'); END;
CREATE TRIGGER step_row_no_delete BEFORE DELETE ON step_row BEGIN SELECT RAISE(ABORT, 'step_row is append-only'); END;
COMMIT;
